"""Tokenizers: text to token ids as transformers gives them, and the files that say so beside a graph."""

from .chat import render_chat
from .files import CHAT_TEMPLATE, SETTINGS, TOKENIZER, has_tokenizer, is_tokenizer_file
from .folder import FolderTokenizer, open_folder
from .read import read_tokenizer
from .written import tokenizer_files

__all__ = [
    "CHAT_TEMPLATE", "SETTINGS", "TOKENIZER", "FolderTokenizer", "has_tokenizer", "is_tokenizer_file", "open_folder",
    "read_tokenizer", "render_chat", "tokenizer_files",
]  # fmt: skip
