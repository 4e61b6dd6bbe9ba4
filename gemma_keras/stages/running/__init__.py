"""What stages share: how one starts, its folder, what it loads, its processes, and how a training run goes."""
