#!/bin/sh
# Builds the images, or with the argument `sbom` the list of what is in each. README.md, beside this file, explains the
# variables: BASE, IMAGE, STAGES, TENSORRT_BASE, TORCH_INDEX.
set -eu
cd "$(dirname "$0")/../.."
what=${1:-images}
base=${BASE:-python:3.11-slim-bookworm}

# BuildKit is a plugin of the docker command from release 23 on; Debian's 20.10 has it built in.
docker=${DOCKER:-docker}
"$docker" buildx version >/dev/null 2>&1 || [ ! -x /usr/bin/docker ] || docker=/usr/bin/docker
export DOCKER="$docker" DOCKER_BUILDKIT=1

# Where no registry can be reached, the default base is made from Debian's packages.
if ! "$docker" image inspect "$base" >/dev/null 2>&1 && ! "$docker" pull "$base"; then
  [ -z "${BASE:-}" ] || { echo "build.sh: the base $base is not here and cannot be pulled" >&2; exit 4; }
  infra/images/base.sh
fi

# That base holds this machine's certificate authorities.
case ${IMAGE:-pdnet} in
  */*) if [ "$("$docker" image inspect --format '{{index .Config.Labels "pdnet.base"}}' "$base")" = local ]; then
         echo "build.sh: $base is the local stand-in of base.sh, not for publishing as $IMAGE; name another BASE" >&2
         exit 3
       fi ;;
esac

# The commit; where what goes into the images differs from it, a digest of the difference too.
set -- README.md infra/images pdnet pyproject.toml requirements.lock
commit=$(git rev-parse HEAD 2>/dev/null || true)
created=$(git log -1 --format=%cI 2>/dev/null || true)
if [ -n "$commit" ] && [ -n "$(git status --porcelain -- "$@")" ]; then
  changes=$(git diff HEAD -- "$@"; git ls-files -z --others --exclude-standard -- "$@" | xargs -0 -r cat)
  commit=$commit-dirty.$(printf '%s' "$changes" | sha256sum | cut -c1-8)
fi

# A package index of the site is for the build alone: it may hold a password.
secret=$(mktemp)
trap 'rm -f "$secret"' EXIT
index=${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-${PIP_INDEX_URL:-$(python3 -m pip config get global.index-url 2>/dev/null || true)}}}
[ -z "$index" ] || printf "export PIP_INDEX_URL='%s' UV_DEFAULT_INDEX='%s'\n" "$index" "$index" >"$secret"

set -- --file infra/images/Dockerfile --secret "id=index,src=$secret" --build-arg "BASE=$base" \
  --build-arg "GIT_COMMIT=$commit" --build-arg "CREATED=$created" \
  ${TENSORRT_BASE:+--build-arg "TENSORRT_BASE=$TENSORRT_BASE"} ${TORCH_INDEX:+--build-arg "TORCH_INDEX=$TORCH_INDEX"}
for stage in ${STAGES:-cpu cuda}; do
  if [ "$what" = sbom ]; then
    "$docker" build "$@" --build-arg "STAGE=$stage" --target sbom --output "type=local,dest=build/images/$stage" .
  else
    "$docker" build "$@" --target "$stage" --tag "${IMAGE:-pdnet}:$stage" .
  fi
done
