# Everyday commands; CONTRIBUTING.md explains each. `just` alone lists them.

# List the recipes.
default:
    @just --list

# The demo: five events through the real handler.
demo *options:
    cargo run -- demo {{ options }}

# Format, lints, house rules: what fails first in CI.
check:
    cargo fmt --all --check
    cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
    cargo test --quiet --test it architecture

# Tests with this name, without the Python peers.
test name:
    cargo test --workspace {{ name }}

# Every test, with the Python peers.
test-all:
    tests/run --locked --workspace

# Write the generated pages, tables and completions anew.
docs:
    ATELIER_WRITE_DOCS=1 cargo test --quiet --test it -- deploy::docs host::metrics::the_documentation_has_the_table

# Write the types of the clients anew; needs the tools of tests/run.
clients:
    clients/generate

# Write THIRD-PARTY and THIRD-PARTY-LICENSES anew; needs cargo-deny.
licences:
    cargo deny --log-level error list --layout crate > THIRD-PARTY
    .ci/licences.py > THIRD-PARTY-LICENSES

# Fuzz one target for some seconds.
fuzz target seconds="60":
    fuzz/run {{ target }} {{ seconds }}

# All that a change must pass.
ci:
    .ci/run
