"""Whether what comes in is a bill of materials as CycloneDX has it: deploy/release/sbom.py cpu | python .ci/sbom.py"""

import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

if problem := JsonStrictValidator(SchemaVersion.V1_5).validate_str(sys.stdin.read()):
    sys.exit(f"the bill of materials is none of CycloneDX 1.5: {getattr(problem.data, 'message', problem)}")
