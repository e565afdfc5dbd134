// Byte-level BPE (Radford et al. 2019), as the tokenizers library does it: text -> pieces -> bytes -> merged pairs.

// GPT-2's pattern. White space as Unicode and Rust have it: JavaScript's \s has U+FEFF too, and lacks U+0085.
const SPACE = "\\t-\\r \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const PIECES = new RegExp(
  `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+|[${SPACE}]+(?![^${SPACE}])|[${SPACE}]+`,
  "gu",
);

/** The character that stands for each byte: printable ones for themselves, the others from U+0100 on. */
function byte_characters() {
  const printable = [[0x21, 0x7e], [0xa1, 0xac], [0xae, 0xff]];
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCharCode(printable.some(([low, high]) => low <= byte && byte <= high) ? byte : next++));
}

export class Tokenizer {
  /** @param {string[]} entries by id @param {string[]} merges pairs with a space between them, the first learnt first */
  constructor(entries, merges) {
    this.entries = entries;
    this.ids = new Map(entries.map((entry, id) => [entry, id]));
    this.ranks = new Map(merges.map((pair, rank) => [pair, rank]));
    this.characters = byte_characters();
    this.bytes = new Map(this.characters.map((character, byte) => [character, byte]));
    /** @type {Map<string, number[]>} */
    this.known = new Map();
  }

  /** @param {string} text @returns {number[]} */
  encode(text) {
    return (text.match(PIECES) ?? []).flatMap((piece) => this.encode_piece(piece));
  }

  /** @param {string} piece @returns {number[]} */
  encode_piece(piece) {
    let ids = this.known.get(piece);
    if (!ids) {
      const parts = [...new TextEncoder().encode(piece)].map((byte) => this.characters[byte]);
      ids = this.merged(parts).map((part) => /** @type {number} */ (this.ids.get(part)));
      if (this.known.size > 10000) this.known.clear();
      this.known.set(piece, ids);
    }
    return ids;
  }

  /** The pair that was learnt first is merged first, the leftmost of equals. @param {string[]} parts */
  merged(parts) {
    for (;;) {
      let best = -1, lowest = Infinity;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < lowest) [best, lowest] = [i, rank];
      }
      if (best < 0) return parts;
      parts = [...parts.slice(0, best), parts[best] + parts[best + 1], ...parts.slice(best + 2)];
    }
  }

  /** The text of some tokens; bytes that are no whole character become U+FFFD. @param {number[]} ids */
  decode(ids) {
    return new TextDecoder().decode(new Uint8Array(this.bytes_of(ids)));
  }

  /** @param {number[]} ids */
  bytes_of(ids) {
    const characters = [...ids.map((id) => this.entries[id] ?? "").join("")];
    return characters.flatMap((character) => this.bytes.get(character) ?? [...new TextEncoder().encode(character)]);
  }
}
