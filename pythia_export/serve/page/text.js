// Text out of tokens. A byte-level token may end in the middle of a character, so bytes are decoded as a stream: a
// character appears with the token that completes it.

import { Tokenizer } from "/modules/@huggingface/tokenizers/tokenizers.min.mjs";

// GPT-2's printable stand-in of every byte: printable Latin-1 stands for itself, the others for what follows U+0100.
const BYTE_OF = new Map();
for (let byte = 0, others = 0; byte < 256; byte++) {
  const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  BYTE_OF.set(String.fromCodePoint(printable ? byte : 0x100 + others++), byte);
}

export class Words {
  constructor(tokenizer) {
    this.tokenizer = new Tokenizer(tokenizer, {});
    this.added = new Map(tokenizer.added_tokens.map((token) => [token.id, token]));
  }

  encode(text) {
    return this.tokenizer.encode(text).ids;
  }

  bytes(token) {
    const added = this.added.get(token);
    if (added) return added.special ? new Uint8Array() : new TextEncoder().encode(added.content);
    const text = this.tokenizer.id_to_token(token) ?? ""; // the model's vocabulary is padded beyond the tokenizer's
    return Uint8Array.from(text, (character) => BYTE_OF.get(character));
  }

  // What a person calls the token: its text with blanks made visible, its bytes where they are no text.
  label(token) {
    if (this.added.get(token)?.special) return this.added.get(token).content;
    const bytes = this.bytes(token);
    if (bytes.length === 0) return `token ${token}`;
    try {
      const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
      return text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "␍");
    } catch {
      return [...bytes].map((byte) => `0x${byte.toString(16).padStart(2, "0")}`).join(" ");
    }
  }

  stream() {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return {
      push: (token) => decoder.decode(this.bytes(token), { stream: true }),
      finish: () => decoder.decode(),
    };
  }
}
