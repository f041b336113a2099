"""Before ranks start: are all hosts of a run there, alike and well? Facts of each host, gathered by
whatever reaches it, are compared; what is wrong is said by host, with what to do."""

NO_CHECK = "ROBUSTLY_NO_CHECK"
"""Environment variable by which ranks know that nobody wants them to look at their hosts, or that
their launcher has."""
