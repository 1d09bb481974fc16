"""RoAd on the outputs of linear layers: values, targets, products, merging."""
