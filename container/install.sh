#!/bin/sh
# Installs sa-swin in a bare Debian 12 from the source that lies in /opt/sa-swin/source; Containerfile and sa-swin.def run it as root.
set -eu
export DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
apt-get update
apt-get install -y --no-install-recommends python3 python3-venv ca-certificates
rm -rf /var/lib/apt/lists/*
cd /opt/sa-swin
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 # first, so that no other package pulls a torch of its own
venv/bin/pip install --quiet --constraint source/constraints.txt --editable 'source[dicom]'
venv/bin/python -m compileall -q source/custom source/sa_swin # the root may be read-only later
chmod -R a+rX /opt/sa-swin
