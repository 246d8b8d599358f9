"""From a source to batches on the devices: order, decoding and residence in memory."""
