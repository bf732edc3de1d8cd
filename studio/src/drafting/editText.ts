// Changes to a field's text as if a person had typed them: the browser's own undo knows of them.

/** Put `text` in place of what is between `start` and `end` in `field`. */
export function replaceText(
  field: HTMLTextAreaElement | HTMLInputElement,
  start: number,
  end: number,
  text: string,
): void {
  field.focus();
  field.setSelectionRange(start, end);
  // The only way that keeps the undo history; deprecated, yet without a successor.
  const done = text
    ? document.execCommand('insertText', false, text)
    : start === end || document.execCommand('delete');
  if (!done) {
    field.setRangeText(text, start, end, 'end');
    field.dispatchEvent(new Event('input', { bubbles: true }));
  }
}

const EDGE = String.raw`[\s,;.:()\[\]]`;

const escaped = (word: string): string => word.replace(/[.*+?^${}()|[\]\\]/g, String.raw`\$&`);

/** Where `word` stands in `text` as a word of its own, not as a part of another; -1: nowhere. */
export function placeOf(word: string, text: string): number {
  const found = new RegExp(`(^|${EDGE})${escaped(word)}(?=$|${EDGE})`, 'i').exec(text);
  return found ? found.index + (found[1]?.length ?? 0) : -1;
}

/** The span of `word` with its comma, where it is a part of its own between commas; else null. */
export function partOf(word: string, text: string): { start: number; end: number } | null {
  const pattern = new RegExp(`(^|,)([ \\t]*)${escaped(word)}[ \\t]*(?=,|$|\\n)`, 'i');
  const found = pattern.exec(text);
  if (!found) return null;
  const end = found.index + found[0].length;
  // The first part goes with the comma after it, any other with the one before it.
  if (found[1] !== '') return { start: found.index, end };
  const rest = /^,[ \t]*/.exec(text.slice(end));
  return { start: found.index, end: end + (rest?.[0].length ?? 0) };
}

/** Make the words around the caret weigh more or less: `word` → `(word:1.1)`. */
export function changeWeight(field: HTMLTextAreaElement, by: number): void {
  let { selectionStart: start, selectionEnd: end } = field;
  const text = field.value;
  // A weight that is there already, around the caret or the selection.
  for (const found of text.matchAll(/\(([^()]*?):(-?\d*\.?\d+)\)/g)) {
    const last = found.index + found[0].length;
    if (start < found.index || end > last) continue;
    const weight = Math.round((Number(found[2]) + by) * 20) / 20;
    const inside = found[1] ?? '';
    const text = weight === 1 ? inside : `(${inside}:${weight})`;
    replaceText(field, found.index, last, text);
    field.setSelectionRange(found.index, found.index + text.length);
    return;
  }
  if (start === end) {
    while (start > 0 && !/[\s,()]/.test(text[start - 1] ?? ' ')) start--;
    while (end < text.length && !/[\s,()]/.test(text[end] ?? ' ')) end++;
  }
  const words = text.slice(start, end).trim();
  if (!words || /[()]/.test(words)) return;
  start += text.slice(start, end).search(/\S/);
  const weighed = `(${words}:${Math.round((1 + by) * 20) / 20})`;
  replaceText(field, start, start + words.length, weighed);
  field.setSelectionRange(start, start + weighed.length);
}

/** Put `word` at the caret of the form's prompt, apart from what is before it. */
export function insertInPrompt(word: string): void {
  const field = document.querySelector<HTMLTextAreaElement>('.composer textarea[name=prompt]');
  if (!field) return;
  const { selectionStart, selectionEnd, value } = field;
  const gap = selectionStart && /\S/.test(value[selectionStart - 1] ?? '') ? ' ' : '';
  replaceText(field, selectionStart, selectionEnd, gap + word);
}
