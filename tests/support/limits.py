"""How long the tests wait for other processes and threads."""

# For what has hung, and for nothing else: what is waited for comes in seconds, and on a machine that others use in
# minutes. No test measures speed by it. It is shorter than pytest's own limit for a test, so that a wait can say what
# it waited for, and shows what the other process printed.
HANG_S = 500
