"""Renders what was proved: the HTML report, the model card, the terminal's verdict. No file is written here."""
