#!/usr/bin/env bash
# Exits with 0 when a version of a model is AVAILABLE. Run: bash ready.sh [MODEL [PORT]]
#
# REST answers 200 whatever the state, so the answer is read. By bash alone: TF
# Serving's image has no curl.
exec 3<>"/dev/tcp/127.0.0.1/${2:-8501}" || exit 1
printf 'GET /v1/models/%s HTTP/1.0\r\nHost: localhost\r\n\r\n' "${1:-mae}" >&3
# grep stops at the word; a time limit for a connection that stays open without it
timeout 4 grep -q '"AVAILABLE"' <&3
