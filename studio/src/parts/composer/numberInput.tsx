// A field for a number that takes a decimal comma or point, whatever language the browser has.

import { useEffect, useState } from 'preact/hooks';
import { plain, readNumber } from '../../i18n';

interface Props {
  id?: string;
  placeholder?: string;
  'aria-label'?: string;
  'aria-invalid'?: 'true';
  'aria-describedby'?: string;
  value: number | null;
  /** NaN where the text is no number; null where there is none. */
  onChange: (value: number | null) => void;
  /** By the arrow keys. */
  stepBy?: number;
  least?: number;
  most?: number;
}

const shownFor = (value: number | null): string =>
  value === null || !Number.isFinite(value) ? '' : plain(value);

export function NumberInput({ value, onChange, stepBy = 1, least, most, ...rest }: Props) {
  const [text, setText] = useState(shownFor(value));
  useEffect(() => {
    // What stands there stays as it was typed, as long as it means the same.
    const meant = text.trim() === '' ? null : readNumber(text);
    if (!Object.is(meant, value)) setText(shownFor(value));
  }, [value]);
  const set = (next: string) => {
    setText(next);
    onChange(next.trim() === '' ? null : readNumber(next));
  };
  const step = (e: KeyboardEvent) => {
    if (e.key !== 'ArrowUp' && e.key !== 'ArrowDown') return;
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    e.preventDefault();
    const now = Number.isFinite(value) ? (value ?? 0) : (least ?? 0);
    const moved = now + (e.key === 'ArrowUp' ? stepBy : -stepBy);
    const held = Math.min(most ?? Infinity, Math.max(least ?? -Infinity, moved));
    set(plain(Number(held.toFixed(4))));
  };
  return (
    <input
      class="number"
      autocomplete="off"
      inputMode="decimal"
      {...rest}
      type="text"
      value={text}
      onInput={(e) => set(e.currentTarget.value)}
      onKeyDown={step}
    />
  );
}
