#!/bin/bash
# Runs one command as several processes of this machine, one per GPU:
#
#   PROCESSES=8 configs/launch/one_machine.sh COMMAND ...
#
# One process can also drive all GPUs of a machine, without a launcher. Without a GPU,
# JAX_PLATFORMS=cpu gives every process one host device.

exec python -m jroute.launch --processes "${PROCESSES:-8}" --devices-per-process 1 --timeout 30 -- "$@"
