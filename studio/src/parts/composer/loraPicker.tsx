// The LoRAs of a request: chosen from the library or dropped in, each with its scale.

import { useState } from 'preact/hooks';
import { change, draft, refused, usedLoras, type FieldErrors } from '../../drafting/draft';
import { partOf, placeOf, replaceText } from '../../drafting/editText';
import { number, t } from '../../i18n';
import { loras, model } from '../../state/store';
import type { Lora } from '../../server/types';
import { LoraCover } from '../pictures/cover';
import { takeFiles, UploadRows, uploads } from './uploads';
import { Button, Dialog, Empty, Slider } from '../ui';

/** Whether `lora` is what `sought` asks for, by its name, tags or trigger words. */
export const isSought = (lora: Lora, sought: string): boolean => {
  const all = [lora.name, lora.description, ...lora.tags, ...lora.trigger_words].join(' ').toLowerCase();
  return sought.toLowerCase().split(/\s+/).every((word) => all.includes(word));
};

/** Add a LoRA to the form, with the scale that it is best at. */
export function chooseLora(lora: Lora): void {
  if (!draft.value.loras.some((one) => one.id === lora.id))
    change({ loras: [...draft.value.loras, { id: lora.id, scale: lora.default_scale }] });
}

export function LoraPicker({ errors }: { errors: FieldErrors }) {
  const [isOpen, setOpen] = useState(false);
  const bounds = model.value?.lora_scale;
  const most = model.value?.limits.max_loras ?? 8;
  const used = usedLoras.value;
  return (
    <div class="lora-picker">
      <fieldset>
        <legend>
          {t('nav.loras')}{' '}
          <span class="muted num">
            {used.length}/{most}
          </span>
        </legend>
        {used.map(({ lora, scale, isAvatars }) => {
          const place = draft.value.loras.findIndex((one) => one.id === lora.id);
          const field = `loras[${place}].scale`;
          return (
            <div class="lora-use" key={lora.id}>
              {isAvatars ? (
                <p class="row between">
                  <span>{lora.name}</span>
                  <span class="muted small">
                    {t('form.fromAvatar')} · <span class="num">{number(scale, 2, 2)}</span>
                  </span>
                </p>
              ) : (
                <>
                  <Slider
                    label={lora.name}
                    value={scale}
                    min={bounds?.minimum ?? -2}
                    max={bounds?.maximum ?? 2}
                    step={0.05}
                    error={refused.value[field] ?? errors[field]}
                    onChange={(value) =>
                      change({
                        loras: draft.value.loras.map((one) =>
                          one.id === lora.id ? { ...one, scale: value } : one,
                        ),
                      })
                    }
                  />
                  <Button
                    icon="close"
                    kind="quiet"
                    iconOnly
                    onClick={() =>
                      change({ loras: draft.value.loras.filter((one) => one.id !== lora.id) })
                    }
                  >
                    {t('form.removeLora', { name: lora.name })}
                  </Button>
                </>
              )}
            </div>
          );
        })}
        {used.length < most && (
          <Button icon="plus" kind="quiet" onClick={() => setOpen(true)}>
            {t('form.addLora')}
          </Button>
        )}
        {errors.loras && <p class="field-error">{errors.loras}</p>}
        <UploadRows rows={uploads.value.filter((row) => row.from === 'create' && row.state !== 'done')} />
      </fieldset>
      {isOpen && <LibraryDialog onClose={() => setOpen(false)} />}
    </div>
  );
}

// Fewer are seen at a glance.
const SEARCHED_FROM = 7;

/** The field in which LoRAs are looked for, once there are so many. */
export function LoraSearch(props: {
  among: number;
  sought: string;
  onSought: (words: string) => void;
}) {
  if (props.among < SEARCHED_FROM) return null;
  return (
    <input
      type="search"
      placeholder={t('form.searchLora')}
      aria-label={t('form.searchLora')}
      value={props.sought}
      onInput={(e) => props.onSought(e.currentTarget.value)}
    />
  );
}

function LibraryDialog(props: { onClose: () => void }) {
  const [sought, setSought] = useState('');
  const all = loras.value ?? [];
  const found = all.filter((lora) => isSought(lora, sought));
  const chosen = new Set(usedLoras.value.map(({ lora }) => lora.id));
  return (
    <Dialog title={t('form.addLora')} onClose={props.onClose}>
      <LoraSearch among={all.length} sought={sought} onSought={setSought} />
      <ul class="choices">
        {found.map((lora) => (
          <li key={lora.id}>
            <button
              type="button"
              disabled={chosen.has(lora.id)}
              onClick={() => {
                chooseLora(lora);
                props.onClose();
              }}
            >
              <LoraCover lora={lora} />
              <span class="choice-words">
                <strong>{lora.name}</strong>
                <span class="muted small">
                  {[...lora.trigger_words.slice(0, 4), ...lora.tags.slice(0, 4)].join(' · ') ||
                    `${lora.format} · ${t('lora.rank', { rank: lora.rank })}`}
                </span>
              </span>
            </button>
          </li>
        ))}
      </ul>
      {all.length === 0 && <Empty icon="loras" title={t('lora.empty')} />}
      {all.length > 0 && found.length === 0 && (
        <p class="muted" role="status">
          {t('lora.noHit', { sought })}
        </p>
      )}
      <FilePicker onFiles={(files) => void takeFiles(files)} />
    </Dialog>
  );
}

/** A button that opens the computer's file dialog. */
export function FilePicker({ onFiles }: { onFiles: (files: File[]) => void }) {
  return (
    <label class="file-picker">
      <input
        type="file"
        accept=".safetensors"
        multiple
        onChange={(e) => {
          onFiles([...(e.currentTarget.files ?? [])]);
          e.currentTarget.value = '';
        }}
      />
      {t('lora.choose')}
    </label>
  );
}

/** Words that wake the chosen LoRAs, to be put into the prompt with one click. */
export function TriggerWords() {
  const { prompt } = draft.value;
  const words = [...new Set(usedLoras.value.flatMap(({ lora }) => lora.trigger_words))];
  if (!words.length) return null;
  return (
    <div class="chips" role="group" aria-label={t('form.triggers')}>
      {words.slice(0, 16).map((word) => (
        <button
          type="button"
          key={word}
          class="chip"
          aria-pressed={placeOf(word, prompt) >= 0}
          onClick={() => toggleWord(word)}
        >
          {word}
        </button>
      ))}
    </div>
  );
}

/** Put `word` at the prompt's end; where it is a part of its own, take it out again. */
function toggleWord(word: string): void {
  const field = document.querySelector<HTMLTextAreaElement>('textarea.prompt');
  if (!field) return;
  const text = field.value;
  const part = partOf(word, text);
  if (part) {
    replaceText(field, part.start, part.end, '');
    return;
  }
  const place = placeOf(word, text);
  if (place >= 0) {
    // Within a phrase only its writer knows what would be left: it is shown, not cut out.
    field.focus();
    field.setSelectionRange(place, place + word.length);
    return;
  }
  const end = text.replace(/[\s,]+$/, '').length;
  replaceText(field, end, text.length, end ? `, ${word}` : word);
}
