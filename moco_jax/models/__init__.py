"""Networks: backbones, projection heads, the decoder of masked patches, and the pretexts.

The families of backbones are in backbones.py, the networks of each in `NETWORKS` of its own file;
projection heads are in `HEADS` of heads.py. Their keys are the values of `config.model.name` and
`config.model.head`.
"""
