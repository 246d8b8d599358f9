"""The method: dictionaries, key encoders, shuffled batch norm, losses and the train step."""
