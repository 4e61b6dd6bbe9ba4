"""Writes QQP and CoLA as json files {instruction, input, output}, one for training and one for dev, in WORKDIR."""

from gemma_keras.stages.running.launch import launch

if __name__ == "__main__":
    launch("prepare_glue", "glue", default_config="configs/recipe_e.py")
