"""megatron_yuyuan: train a GPT-2 on PubMed, teach it to answer MedQuAD's questions, hand it to
Hugging Face.

Read `run.py` first: it is the whole program on one page. Importing this package imports nothing
else.
"""

__version__ = "0.1.0"
