// Several files as one ZIP, made in the browser: pictures do not shrink, so they are only stored.

const TABLE = Array.from({ length: 256 }, (_, n) => {
  let value = n;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value >>> 0;
});

function crc32(bytes: Uint8Array): number {
  let value = 0xffffffff;
  for (const byte of bytes) value = (TABLE[(value ^ byte) & 0xff] ?? 0) ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

const UTF8 = 0x0800;
const VERSION = 20;

/** The fields that a file's own header and its entry in the directory share. */
function fields(crc: number, size: number, name: number, when: Date): number[][] {
  const time = (when.getHours() << 11) | (when.getMinutes() << 5) | (when.getSeconds() >> 1);
  const date = ((when.getFullYear() - 1980) << 9) | ((when.getMonth() + 1) << 5) | when.getDate();
  return [[2, VERSION], [2, UTF8], [2, 0], [2, time], [2, date], [4, crc], [4, size], [4, size], [2, name], [2, 0]];
}

function packed(parts: number[][]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(parts.reduce((sum, [length = 0]) => sum + length, 0));
  let at = 0;
  for (const [length = 0, value = 0] of parts) {
    for (let place = 0; place < length; place++) bytes[at++] = Math.floor(value / 2 ** (8 * place)) & 0xff;
  }
  return bytes;
}

/** A ZIP of `files`; of two with the same name the later one gets a number. */
export async function zip(files: { name: string; blob: Blob }[]): Promise<Blob> {
  const parts: BlobPart[] = [];
  const directory: BlobPart[] = [];
  const taken = new Set<string>();
  let offset = 0;
  let length = 0;
  const when = new Date();
  for (const { name, blob } of files) {
    let unique = name;
    for (let n = 2; taken.has(unique); n++) unique = name.replace(/(\.\w+)?$/, `-${n}$1`);
    taken.add(unique);
    const path = new TextEncoder().encode(unique);
    const shared = fields(crc32(new Uint8Array(await blob.arrayBuffer())), blob.size, path.length, when);
    const head = packed([[4, 0x04034b50], ...shared]);
    const entry = packed([
      [4, 0x02014b50],
      [2, VERSION],
      ...shared,
      [2, 0],
      [2, 0],
      [2, 0],
      [4, 0],
      [4, offset],
    ]);
    parts.push(head, path, blob);
    directory.push(entry, path);
    offset += head.length + path.length + blob.size;
    length += entry.length + path.length;
  }
  const end = packed([
    [4, 0x06054b50],
    [2, 0],
    [2, 0],
    [2, files.length],
    [2, files.length],
    [4, length],
    [4, offset],
    [2, 0],
  ]);
  return new Blob([...parts, ...directory, end], { type: 'application/zip' });
}
