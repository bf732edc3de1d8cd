// The prompt: trigger words are completed while one types, weights change by Ctrl+↑ and ↓, text
// of other tools that is pasted becomes settings, and what was there before can be had back.

import { useId, useRef, useState } from 'preact/hooks';
import { avatar, change, draft, usedLoras } from '../../drafting/draft';
import { changeWeight, replaceText } from '../../drafting/editText';
import { past, rememberDraft } from '../../state/history';
import { moment, t } from '../../i18n';
import { inStyle, dropPreset, presets, savePreset, STYLES } from '../../drafting/presets';
import { loras, tell } from '../../state/store';
import { wildcards } from '../../state/words';
import { WordsManager } from './stylesField';
import { looksLikeSettings, takeSettings } from '../dropZone';
import { Button, Dialog, Empty, Field } from '../ui';

const WEIGHT = 0.1;
const OFFERED = 6;

/** The word that is being typed at `at`, from the last comma or bracket on. */
function begunAt(text: string, at: number): { start: number; word: string } {
  const start = Math.max(...[',', '\n', '(', ')'].map((sign) => text.lastIndexOf(sign, at - 1))) + 1;
  const word = text.slice(start, at);
  return { start: start + (word.length - word.trimStart().length), word: word.trimStart() };
}

const MARK = /__([\w-]*)$/;

/** Marks of wildcards that go on as what is typed before the caret begins. */
function marksFor(before: string): string[] {
  const begun = MARK.exec(before)?.[1]?.toLowerCase();
  if (begun === undefined) return [];
  const names = (wildcards.value ?? []).map((one) => one.name);
  return names.filter((name) => name.startsWith(begun)).slice(0, OFFERED).map((name) => `__${name}__`);
}

/** Trigger words that go on as `word` begins: of the chosen LoRAs first. */
function matching(word: string): string[] {
  if (word.length < 2) return [];
  const begun = word.toLowerCase();
  const chosen = usedLoras.value.flatMap(({ lora }) => lora.trigger_words);
  const others = (loras.value ?? []).flatMap((lora) => lora.trigger_words);
  return [...new Set([...chosen, ...others])]
    .filter((one) => one.toLowerCase().startsWith(begun) && one.toLowerCase() !== begun)
    .slice(0, OFFERED);
}

export function PromptField({ error }: { error?: string }) {
  const field = useRef<HTMLTextAreaElement>(null);
  const [offered, setOffered] = useState<string[]>([]);
  const [current, setCurrent] = useState(0);
  const [shows, setShows] = useState<'history' | 'presets' | 'words' | null>(null);
  const id = useId();
  const accept = (word: string) => {
    const element = field.current;
    if (!element) return;
    const at = element.selectionStart;
    const mark = word.startsWith('__') ? MARK.exec(element.value.slice(0, at)) : null;
    replaceText(element, mark?.index ?? begunAt(element.value, at).start, at, word);
    setOffered([]);
  };
  const onKeyDown = (e: KeyboardEvent) => {
    const element = field.current;
    if (!element) return;
    if ((e.ctrlKey || e.metaKey) && (e.key === 'ArrowUp' || e.key === 'ArrowDown')) {
      e.preventDefault();
      changeWeight(element, e.key === 'ArrowUp' ? WEIGHT : -WEIGHT);
      return;
    }
    if (!offered.length || e.ctrlKey || e.metaKey || e.altKey) return;
    const step: Record<string, number> = { ArrowDown: 1, ArrowUp: offered.length - 1 };
    const by = step[e.key];
    if (by !== undefined) setCurrent((current + by) % offered.length);
    else if (e.key === 'Enter' || e.key === 'Tab') accept(offered[current] ?? '');
    else if (e.key === 'Escape') setOffered([]);
    else return;
    e.preventDefault();
    e.stopPropagation();
  };
  const onPaste = (e: ClipboardEvent) => {
    const text = e.clipboardData?.getData('text/plain') ?? '';
    if (!looksLikeSettings(text)) return;
    e.preventDefault();
    void takeSettings(text);
  };
  return (
    <div class="prompt-box">
      <Field
        label={t('form.prompt')}
        error={error}
        hint={avatar.value ? t('form.promptAfterAvatar', { name: avatar.value.name }) : t('form.promptHint')}
        aside={
          <span class="row">
            <Button icon="clock" kind="quiet" iconOnly onClick={() => setShows('history')}>
              {t('history.title')}
            </Button>
            <Button icon="style" kind="quiet" iconOnly onClick={() => setShows('presets')}>
              {t('preset.title')}
            </Button>
          </span>
        }
      >
        {(attributes) => (
          <textarea
            {...attributes}
            ref={field}
            class="prompt"
            name="prompt"
            rows={5}
            placeholder={t('form.promptExample')}
            value={draft.value.prompt}
            aria-autocomplete="list"
            aria-controls={offered.length ? id : undefined}
            aria-activedescendant={offered.length ? `${id}-${current}` : undefined}
            onInput={(e) => {
              change({ prompt: e.currentTarget.value });
              const { value, selectionStart } = e.currentTarget;
              const marks = marksFor(value.slice(0, selectionStart));
              setOffered(marks.length ? marks : matching(begunAt(value, selectionStart).word));
              setCurrent(0);
            }}
            onKeyDown={onKeyDown}
            onPaste={onPaste}
            onBlur={() => setOffered([])}
          />
        )}
      </Field>
      {offered.length > 0 && (
        <ul class="offered" id={id} role="listbox" aria-label={t('form.triggers')}>
          {offered.map((word, place) => (
            <li
              key={word}
              id={`${id}-${place}`}
              role="option"
              aria-selected={place === current}
              // Before the field loses the focus, and with it this list.
              onMouseDown={(e) => {
                e.preventDefault();
                accept(word);
              }}
            >
              {word}
            </li>
          ))}
        </ul>
      )}
      {shows === 'history' && <HistoryDialog onClose={() => setShows(null)} />}
      {shows === 'presets' && (
        <PresetDialog onClose={() => setShows(null)} onManage={() => setShows('words')} />
      )}
      {shows === 'words' && <WordsManager onClose={() => setShows(null)} />}
    </div>
  );
}

function HistoryDialog({ onClose }: { onClose: () => void }) {
  return (
    <Dialog title={t('history.title')} onClose={onClose}>
      {past.value.length ? (
        <ul class="choices">
          {past.value.map((one) => (
            <li key={one.at + one.draft.prompt}>
              <button
                type="button"
                onClick={() => {
                  const before = draft.value;
                  rememberDraft(before);
                  // Of before the form had styles: with none.
                  change({ ...one.draft, styles: one.draft.styles ?? [] });
                  tell(t('told.reused'), {
                    action: { label: t('action.undo'), run: () => change(before) },
                  });
                  onClose();
                }}
              >
                <span class="choice-words">
                  <span class="clamp">{one.draft.prompt}</span>
                  <span class="muted small">{moment(one.at)}</span>
                </span>
              </button>
            </li>
          ))}
        </ul>
      ) : (
        <Empty icon="clock" title={t('history.empty')} />
      )}
    </Dialog>
  );
}

function PresetDialog({ onClose, onManage }: { onClose: () => void; onManage: () => void }) {
  const [name, setName] = useState('');
  const use = (changes: Parameters<typeof change>[0]) => {
    const before = draft.value;
    rememberDraft(before);
    change(changes);
    tell(t('told.reused'), { action: { label: t('action.undo'), run: () => change(before) } });
    onClose();
  };
  return (
    <Dialog title={t('preset.title')} onClose={onClose}>
      <h3>{t('preset.styles')}</h3>
      <div class="chips">
        {Object.keys(STYLES).map((style) => (
          <button
            type="button"
            class="chip"
            key={style}
            onClick={() => use(inStyle(draft.value, style))}
          >
            {t(`style.${style}` as 'style.photo')}
          </button>
        ))}
      </div>
      <p>
        <Button icon="more" kind="quiet" onClick={onManage}>
          {t('words.title')}
        </Button>
      </p>
      <h3>{t('preset.own')}</h3>
      <ul class="choices">
        {presets.value.map((one) => (
          <li key={one.id} class="row">
            <button type="button" onClick={() => use({ ...one.draft, styles: one.draft.styles ?? [] })}>
              <span class="choice-words">
                <strong>{one.name}</strong>
                <span class="muted small clamp">{one.draft.prompt}</span>
              </span>
            </button>
            <Button icon="trash" kind="quiet" iconOnly onClick={() => dropPreset(one.id)}>
              {t('preset.remove', { name: one.name })}
            </Button>
          </li>
        ))}
      </ul>
      <form
        class="row"
        onSubmit={(e) => {
          e.preventDefault();
          if (!name.trim()) return;
          savePreset(name.trim(), draft.value);
          setName('');
        }}
      >
        <input
          type="text"
          maxLength={80}
          aria-label={t('preset.name')}
          placeholder={t('preset.name')}
          value={name}
          onInput={(e) => setName(e.currentTarget.value)}
        />
        <Button type="submit" icon="plus" disabled={!name.trim()}>
          {t('preset.save')}
        </Button>
      </form>
    </Dialog>
  );
}
