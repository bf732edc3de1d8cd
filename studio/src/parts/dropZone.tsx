// Files dropped anywhere on the page: a LoRA goes into the library, a picture's settings into the
// form; a picture without settings is what is drawn over. Where pictures are checked, a picture is checked. Nothing that is dropped makes the browser
// leave the page.

import { useEffect, useState } from 'preact/hooks';
import { change, draft } from '../drafting/draft';
import { rememberDraft } from '../state/history';
import { listed, t } from '../i18n';
import { go, route } from '../state/route';
import { gate, tell } from '../state/store';
import { takeFiles } from './composer/uploads';
import { useFile } from './source/panel';
import { checked } from '../state/checked';

/** Whether `text` looks like what is pasted from another tool rather than like a prompt. */
export const looksLikeSettings = (text: string): boolean =>
  /(^|\n)\s*Steps: \d+, /.test(text) && /Seed: \d+/.test(text);

// Fetched when a first text or picture is to be read.
const reader = () => import('../drafting/pngSettings');

/** Put what `text` says into the form; it can be taken back. */
export async function takeSettings(text: string): Promise<void> {
  const { readSettings } = await reader();
  const { draft: found, missing, lacksPictures } = readSettings(text);
  const before = draft.value;
  rememberDraft(before);
  change(found);
  go('create');
  const taken = t(lacksPictures ? 'drop.pictures' : 'drop.taken');
  tell(missing.length ? t('drop.without', { names: listed(missing) }) : taken, {
    isError: missing.length > 0,
    action: { label: t('action.undo'), run: () => change(before) },
  });
}

async function take(files: File[]): Promise<void> {
  const pictures = files.filter((file) => file.type.startsWith('image/'));
  const others = files.filter((file) => !pictures.includes(file));
  if (others.length) void takeFiles(others);
  const [first] = pictures;
  if (!first) return;
  const { parametersIn } = await reader();
  const text = await parametersIn(first);
  if (text !== null) await takeSettings(text);
  else {
    go('create');
    await useFile(first);
  }
}

const isChecking = (): boolean => route.value.view === 'verify';
const takesFiles = (): boolean => gate.value === 'open' || isChecking();

const hasFiles = (e: DragEvent): boolean => e.dataTransfer?.types.includes('Files') ?? false;

export function DropZone() {
  const [isOver, setOver] = useState(false);
  useEffect(() => {
    let depth = 0;
    const end = () => {
      depth = 0;
      setOver(false);
    };
    const listeners: [string, (e: DragEvent) => void][] = [
      [
        'dragenter',
        (e) => {
          if (!hasFiles(e)) return;
          e.preventDefault();
          depth++;
          setOver(takesFiles());
        },
      ],
      ['dragover', (e) => hasFiles(e) && e.preventDefault()],
      ['dragleave', () => (depth = Math.max(0, depth - 1)) === 0 && end()],
      [
        'drop',
        (e) => {
          if (!hasFiles(e)) return;
          // A part of the page took it.
          const isTaken = e.defaultPrevented;
          e.preventDefault();
          end();
          if (isTaken) return;
          const files = [...(e.dataTransfer?.files ?? [])];
          if (isChecking()) checked.value = files[0] ?? null;
          else if (takesFiles()) void take(files);
        },
      ],
      ['dragend', end],
    ];
    for (const [name, listener] of listeners) addEventListener(name, listener as EventListener);
    return () => {
      for (const [name, listener] of listeners) removeEventListener(name, listener as EventListener);
    };
  }, []);
  if (!isOver) return null;
  return (
    <p class="drop-note" aria-hidden="true">
      {t(isChecking() ? 'verify.drop' : 'drop.here')}
    </p>
  );
}
