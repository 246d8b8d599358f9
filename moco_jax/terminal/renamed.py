"""Names of versions before 0.2.0, and the names since."""

KEYS = {  # of configs
    "data.max_bad_share": "data.max_bad_fraction",
    "label_share": "label_fraction",
}
FLAGS = {  # of commands
    "pictures": "images",
    "training_pictures": "training_images",
    "pictures_per_chip": "images_per_chip",
}
