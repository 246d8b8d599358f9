"""The semantic segmentation task: a dilated ResNet-FCN on an encoder."""
