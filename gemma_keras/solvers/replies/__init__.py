"""What a model's reply says: sub-questions, a letter, a score, a verdict, a final answer. Chinese and English alike."""
