# Engram with pinned versions, for clusters.
#   docker build -t engram .                                  with the extras slurm and ray
#   docker build -t engram --build-arg EXTRAS=ray,cuda .      for NVIDIA GPUs
FROM python:3.12-slim
ARG EXTRAS=slurm,ray
# g++ compiles the C++ kernels once for each kind of machine; Ray's autoscaler on Kubernetes calls wget.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ wget \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /engram
COPY . .
RUN pip install --no-cache-dir -c constraints/py312.txt ".[${EXTRAS}]"
ENV XDG_CACHE_HOME=/tmp/cache
CMD ["engram", "--help"]
