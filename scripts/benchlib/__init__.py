"""What scripts/bench is made of.

    host      commands, loop devices and mounts that are taken away again
    facts     what somebody needs to know of the machine
    server    a PostgreSQL server on a data directory: start, stop, psql, pgbench
    backup    a copy of a server that runs
    disk      where a system keeps its clusters
    system    what every system does
    peers     ext4, btrfs, xfs, OverlayFS
    pgcowfs   pgcowfs
    systems   the list of them
    work      what is measured on a fork
    rounds    which work on which system in which order
    figures   medians, ratios, targets
    report    the table
    plot      the drawings; the only module that needs more than Python itself
    selftest  the arithmetic on known figures

Each imports only modules above it in this list.
"""
