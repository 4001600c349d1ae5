# Images of all programs, one stage each:
#
#   docker build --target operator -t localhost/mayastor/operator:0.1.0 .
#
# for operator, io-engine, ha-cluster, ha-node, csi-controller and csi-node. All stages share one build. `make images`
# makes the same without a container engine.

FROM docker.io/library/rust:1-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends protobuf-compiler libprotobuf-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The caches are not part of any image, so that a change of one crate does not build all the others again.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --bins -p operator -p io-engine -p ha -p csi \
    && mkdir /programs \
    && for name in operator io-engine ha-cluster ha-node csi-controller csi-node; do \
           strip -o /programs/$name target/release/$name; \
       done

# The C library, and nothing that could be run.
FROM gcr.io/distroless/cc-debian12 AS base

FROM base AS operator
COPY --from=build /programs/operator /usr/local/bin/
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/operator"]

# Folders on the node, which kubelet makes, are root's.
FROM base AS io-engine
COPY --from=build /programs/io-engine /usr/local/bin/
USER 0:0
ENTRYPOINT ["/usr/local/bin/io-engine"]

FROM base AS ha-cluster
COPY --from=build /programs/ha-cluster /usr/local/bin/
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/ha-cluster"]

# Writes to /sys.
FROM base AS ha-node
COPY --from=build /programs/ha-node /usr/local/bin/
USER 0:0
ENTRYPOINT ["/usr/local/bin/ha-node"]

FROM base AS csi-controller
COPY --from=build /programs/csi-controller /usr/local/bin/
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/csi-controller"]

# Makes, grows and mounts file systems with the tools of a distribution.
FROM docker.io/library/debian:bookworm-slim AS csi-node
RUN apt-get update \
    && apt-get install -y --no-install-recommends btrfs-progs e2fsprogs mount util-linux xfsprogs \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /programs/csi-node /usr/local/bin/
USER 0:0
ENTRYPOINT ["/usr/local/bin/csi-node"]
