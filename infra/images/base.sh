#!/bin/sh
# Makes, from Debian's own packages, a local stand-in for the image that the Dockerfile names as its base, for machines
# that reach no image registry. It carries this machine's certificate authorities: never publish what is built on it.
set -eu
base=${BASE:-python:3.11-slim-bookworm}
docker=${DOCKER:-docker}
command -v mmdebstrap >/dev/null || { echo "base.sh: needs mmdebstrap: apt-get install mmdebstrap" >&2; exit 4; }

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
certificates=/etc/ssl/certs/ca-certificates.crt
mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3.11,python3-venv \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --customize-hook="copy-in $certificates /etc/ssl/certs" \
  --customize-hook='rm -rf "$1"/var/log/* "$1"/var/cache/ldconfig' \
  bookworm "$folder/base.tar"
"$docker" import --change 'LABEL pdnet.base=local' --change 'CMD ["python3"]' "$folder/base.tar" "$base"
