"""Chats with a model on the terminal; or answers --config.questions (repeated for several), or the lines of a pipe, and ends.

What cannot be answered has the reason in brackets, and then the exit status is 1.
"""

from gemma_keras.stages.running.launch import launch

if __name__ == "__main__":
    launch("chat", default_config="configs/chat.py")
