#!/bin/sh
# The tests that need Docker. Installs it where it is missing (Debian, as root), starts it where it does not run, builds
# the image, and leaves nothing running that it started.
set -eu
cd "$(dirname "$0")/.."

if ! command -v dockerd >/dev/null && ! docker info >/dev/null 2>&1; then
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || {
    echo "test-containers: Docker does not answer, and installing it needs root on Debian" >&2; exit 4; }
  apt-get update -qq && apt-get install -qq -y --no-install-recommends docker.io iptables mmdebstrap >/dev/null
fi

if ! docker info >/dev/null 2>&1; then
  log=$(mktemp)
  dockerd >"$log" 2>&1 &
  daemon=$!
  trap 'kill "$daemon" 2>/dev/null; wait "$daemon" 2>/dev/null || true; rm -f "$log"' EXIT
  tries=0
  until docker info >/dev/null 2>&1; do
    tries=$((tries + 1))
    if [ "$tries" -gt 60 ] || ! kill -0 "$daemon" 2>/dev/null; then
      tail -5 "$log" >&2
      echo "test-containers: dockerd did not start" >&2
      exit 4
    fi
    sleep 1
  done
fi

STAGES=cpu infra/images/build.sh
python -m pytest -m containers "$@"
