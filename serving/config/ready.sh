#!/usr/bin/env bash
# Readiness probe: exit code 0 if a version of a model is AVAILABLE.
# Run: bash ready.sh [MODEL [PORT]]
#
# REST returns 200 in any state, so the body is read. Pure bash: TF Serving's image has
# no curl.
exec 3<>"/dev/tcp/127.0.0.1/${2:-8501}" || exit 1
printf 'GET /v1/models/%s HTTP/1.0\r\nHost: localhost\r\n\r\n' "${1:-mae}" >&3
# grep stops at the match; the timeout is for a connection that stays open
timeout 4 grep -q '"AVAILABLE"' <&3
