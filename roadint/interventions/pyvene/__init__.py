"""pyvene's entry: how an intervention of roadint runs, loads and says where it acts inside pyvene."""
