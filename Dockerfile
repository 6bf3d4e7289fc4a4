# docker build --tag ladle .
# docker run --rm --gpus all --volume "$PWD:/work" ladle run quickstart.yaml
#
# torch comes from PyPI: on x86-64 a build with CUDA. For CPUs only, a gigabyte instead of several:
#   docker build --build-arg TORCH_OPTIONS="--index-url https://download.pytorch.org/whl/cpu" --tag ladle .
# The image has a C compiler, which torch.compile and Triton call.
FROM python:3.11-bookworm

ARG TORCH_OPTIONS=""
ENV PYTHONNOUSERSITE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /opt/ladle
COPY . .
# hadolint ignore=SC2086,DL3013
RUN pip install ${TORCH_OPTIONS} torch==2.13.0 && \
    pip install --require-hashes --no-deps -r requirements.txt && \
    pip install --no-deps --no-build-isolation .

WORKDIR /work
ENTRYPOINT ["ladle"]
CMD ["--help"]
