"""The exit codes of all commands, and of ranks: what a script, a queue or a person may do next."""

import signal

FINISHED = 0
"""All that was asked for is done."""
FAULT = 1
"""A fault of the software, with its traceback; or a folder that fails its proof, with where it is
kept. Starting again would meet it again."""
MISTAKE = 2
"""What the user can mend, training that diverged included: the same command would fail again."""
START_AGAIN = 75
"""Stopped before the end, by a signal or by what a new start mends (a rank that was lost, hung or
killed, too little memory): the same command goes on. EX_TEMPFAIL of <sysexits.h>."""
INTERRUPTED = 128 + signal.SIGINT
"""Ctrl-C: the same command goes on."""
