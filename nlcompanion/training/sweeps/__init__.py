"""Many runs: settings crossed, shared among processes, kept in files."""
