#!/bin/sh
# Builds images/<name> for each name given, with docker, podman or buildah, whichever works here:
#   images/build.sh cpu engine train
# REGISTRY and TAG name them (localhost, the commit); BASE_IMAGE replaces the base; PIP_CONFIG is a pip.conf for the build
# alone; BUILD_FLAGS are handed on.
set -eu
cd "$(dirname "$0")/.."
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
[ -n "${TAG:-}" ] || TAG=$(echo "$revision" | cut -c1-12)

if docker info >/dev/null 2>&1; then
    build="docker build"
elif command -v podman >/dev/null 2>&1; then
    build="podman build"
elif command -v buildah >/dev/null 2>&1; then
    build="buildah build"
else
    echo "images: none of docker (with its daemon), podman and buildah works here" >&2
    exit 1
fi

for name in "$@"; do
    file=images/$name/Dockerfile
    [ -f "$file" ] || { echo "images: there is no $file; there are: $(ls images/*/Dockerfile)" >&2; exit 2; }
    set -- --file "$file" --tag "${REGISTRY:-localhost}/isr-dpo-$name:$TAG"
    set -- "$@" --build-arg "VERSION=$version" --build-arg "REVISION=$revision"
    [ -z "${BASE_IMAGE:-}" ] || set -- "$@" --build-arg "BASE_IMAGE=$BASE_IMAGE"
    [ -z "${PIP_CONFIG:-}" ] || set -- "$@" --secret "id=pip,src=$PIP_CONFIG"
    # shellcheck disable=SC2086 # several flags in one variable
    $build ${BUILD_FLAGS:-} "$@" .
done
