"""The page at /: a few files that ask this server for answers, and no other host for anything."""
