#!/usr/bin/env bash
# scripts/demo with the packaged programs, on an architecture that this machine does not have.
# kernel arm64
set -euo pipefail

modprobe tun
cd /vm-bin/tree
scripts/demo --programs /vm-bin
