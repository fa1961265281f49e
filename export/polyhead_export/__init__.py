"""From a run directory to a verified bundle: the graph, the gate and the artifact's format."""
