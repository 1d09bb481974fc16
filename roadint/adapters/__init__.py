"""RoAd on linear layers: the values, the layers that they turn, products of several, merging."""
