"""The recipe's stages by its published values, to compare with: configs/stage1.py to stage3.py are those to train with."""
