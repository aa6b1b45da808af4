"""Marks on images as other programs keep them: COCO, Label Studio and CVAT."""
