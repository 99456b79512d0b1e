# syntax=docker/dockerfile:1.7
# atelier as a Lambda image (where there is a Runtime API) and as a host (`atelier host`), for linux/amd64.
#
#   docker build --target cuda --tag atelier:0.1.0 .                                          GPUs of compute capability 8.x
#   docker build --target cuda --build-arg CUDA_COMPUTE_CAP=90 --tag atelier:0.1.0-sm90 .     Hopper
#   docker build --target cpu --tag atelier:0.1.0-cpu .                                       no GPU
#
# What each stage does is in deploy/image/, where a test runs it. Another model than the bundled toy: mount its directory, or add it in an
# image of yours (docs/lambda.md#the-image).

ARG RUST=1.94.1
ARG CUDA=13.0.2

FROM rust:${RUST}-bookworm AS rust

FROM rust AS build-cpu
WORKDIR /source
COPY . .
# .git stays outside: `--build-arg ATELIER_GIT_COMMIT=$(git rev-parse HEAD)` is what /version will say.
ARG ATELIER_GIT_COMMIT=
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/source/target \
    deploy/image/build.sh cpu /image

FROM nvidia/cuda:${CUDA}-cudnn-devel-ubuntu24.04 AS build-cuda
# Flash attention is machine code for one generation: 80 (A100) serves 86 (A10G) and 89 (L4, L40S) as well, 90 is H100 and H200.
ARG CUDA_COMPUTE_CAP=80
ENV CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP} RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:$PATH
COPY --from=rust /usr/local/cargo /usr/local/cargo
COPY --from=rust /usr/local/rustup /usr/local/rustup
WORKDIR /source
COPY . .
ARG ATELIER_GIT_COMMIT=
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/source/target,id=cuda \
    deploy/image/build.sh cuda /image

# glibc, certificates, an unprivileged user; no shell.
FROM gcr.io/distroless/cc-debian13:nonroot AS cpu
COPY --from=build-cpu /image/bin/atelier /usr/local/bin/atelier
COPY --from=build-cpu /image/srv /srv
# Jobs that wait where no queue is configured: the user of the image may write here, and a volume outlives the container.
COPY --from=build-cpu --chown=nonroot:nonroot /image/state /var/lib/atelier
VOLUME /var/lib/atelier
WORKDIR /srv
ENV HOME=/tmp ATELIER__SOURCES__SPOOL__DIRECTORY=/var/lib/atelier/spool
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/atelier"]

FROM gcr.io/distroless/cc-debian13:nonroot AS cuda
COPY --from=build-cuda /image/bin/atelier /usr/local/bin/atelier
COPY --from=build-cuda /image/lib /usr/local/cuda/lib
COPY --from=build-cuda /image/srv /srv
COPY --from=build-cuda --chown=nonroot:nonroot /image/state /var/lib/atelier
VOLUME /var/lib/atelier
WORKDIR /srv
ENV HOME=/tmp ATELIER__SOURCES__SPOOL__DIRECTORY=/var/lib/atelier/spool LD_LIBRARY_PATH=/usr/local/cuda/lib NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/atelier"]
