// What styles make of a prompt, as the server puts them around it.

import type { Content, Style } from '../server/types';
import type { Draft } from './draft';

const PLACE = '{prompt}';

function around(text: string, style: string): string {
  if (style.includes(PLACE)) return style.replaceAll(PLACE, () => text);
  if (!style.trim()) return text;
  return [text.trim(), style.trim()].filter(Boolean).join(', ');
}

/**
 * `drawn`, a content's settings with the words that were drawn, by its styles' names: only where
 * these make the very same words of what was written. Else, as where a wildcard was drawn or a
 * style is another by now, it stays as it is, and gives the same picture.
 */
export function byStyles(content: Content, drawn: Draft, known: Style[]): Draft {
  const { written } = content;
  if (!written?.styles.length) return drawn;
  const used = written.styles.map((name) => known.find((one) => one.name === name));
  const isSame = (text: string, field: 'prompt' | 'negative_prompt', said: string) =>
    used.reduce((made, one) => around(made, one?.[field] ?? ''), text).trim() === said.trim();
  const fits =
    !used.includes(undefined) &&
    isSame(written.prompt, 'prompt', drawn.prompt) &&
    isSame(written.negative_prompt, 'negative_prompt', drawn.negative);
  if (!fits) return drawn;
  return {
    ...drawn,
    prompt: written.prompt,
    negative: written.negative_prompt,
    styles: written.styles,
  };
}
