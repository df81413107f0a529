"""Who notices that a rank has died, hangs, or writes where another job does.

signals     that ask a run to stop, noted from its first moment
heartbeat   what a rank says of itself, in memory that outlives it, and in a file
witness     a small process beside every rank: it sees how the rank ends, and where it hangs
processes   what the kernel knows of a process
stacks      where another process is, by faulthandler
exit_file   SAVE/exit.json, read and written without torch
verdict     what is said of a lost rank
lost        the ranks that are left name the one that is missing
lease       one job at a time writes to a SAVE directory
"""
