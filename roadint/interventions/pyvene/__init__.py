"""pyvene's entry: how an intervention runs, loads and says where it acts inside pyvene."""
