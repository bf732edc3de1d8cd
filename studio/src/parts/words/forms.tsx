// A style or a wildcard, new or changed.

import { useState } from 'preact/hooks';
import { change, draft, type FieldErrors } from '../../drafting/draft';
import { t } from '../../i18n';
import { api, asProblem } from '../../server/api';
import { explain } from '../../server/explain';
import type { Style, Wildcard } from '../../server/types';
import { wordsChanged } from '../../state/words';
import { Button, Field } from '../ui';

const STYLE_NAME_MAX = 100;
const WILDCARD_NAME_MAX = 64;
const WILDCARD_NAME = /^[a-z0-9]+([_-][a-z0-9]+)*$/;

interface FormProps {
  /** The names that are taken. */
  others: string[];
  onDirty: () => void;
  onEnd: () => void;
}

/** Save by `save`; what is wrong stands beside its field of `fields`, or above the button. */
function useSaving(fields: string[], onEnd: () => void) {
  const [errors, setErrors] = useState<FieldErrors>({});
  const [isBusy, setBusy] = useState(false);
  const run = async (wrong: FieldErrors, save: () => Promise<void>) => {
    setErrors(wrong);
    if (Object.keys(wrong).length) {
      requestAnimationFrame(() =>
        document.querySelector<HTMLElement>('dialog [aria-invalid=true]')?.focus(),
      );
      return;
    }
    setBusy(true);
    try {
      await save();
      await wordsChanged();
      onEnd();
    } catch (error) {
      const problem = asProblem(error);
      const field = (problem.field ?? '').replace(/\[\d+\]$/, '');
      setErrors({ [fields.includes(field) ? field : '']: explain(problem) });
      setBusy(false);
    }
  };
  return { errors, isBusy, run, clear: () => setErrors({}) };
}

function Foot({ error, isBusy, onEnd }: { error?: string; isBusy: boolean; onEnd: () => void }) {
  return (
    <>
      {error && (
        <p class="field-error" role="alert">
          {error}
        </p>
      )}
      <footer class="row end">
        <Button onClick={onEnd}>{t('action.cancel')}</Button>
        <Button type="submit" kind="accent" disabled={isBusy}>
          {t('action.save')}
        </Button>
      </footer>
    </>
  );
}

export function StyleForm({ style, others, onDirty, onEnd }: FormProps & { style: Style | null }) {
  const [fields, setFields] = useState<Style>(style ?? { name: '', prompt: '', negative_prompt: '' });
  const { errors, isBusy, run, clear } = useSaving(['name', 'prompt', 'negative_prompt'], onEnd);
  const set = (changes: Partial<Style>) => {
    setFields({ ...fields, ...changes });
    clear();
    onDirty();
  };
  const save = () => {
    const name = fields.name.trim();
    const wrong: FieldErrors = {};
    if (!name) wrong.name = t('check.name');
    // It stands in an address.
    else if (/\/|^\.+$/.test(name)) wrong.name = t('words.styleName');
    else if (others.includes(name)) wrong.name = t('words.taken');
    void run(wrong, async () => {
      await api.keepStyle({ ...fields, name });
      if (!style || style.name === name) return;
      await api.deleteStyle(style.name);
      change({ styles: draft.value.styles.map((one) => (one === style.name ? name : one)) });
    });
  };
  return (
    <form
      class="stack"
      noValidate
      onSubmit={(e) => {
        e.preventDefault();
        save();
      }}
    >
      <Field label={t('field.name')} error={errors.name}>
        {(attributes) => (
          <input
            {...attributes}
            type="text"
            maxLength={STYLE_NAME_MAX}
            value={fields.name}
            onInput={(e) => set({ name: e.currentTarget.value })}
          />
        )}
      </Field>
      <Field
        label={t('form.prompt')}
        error={errors.prompt}
        hint={t('words.stylesText', { place: '{prompt}' })}
      >
        {(attributes) => (
          <textarea
            {...attributes}
            rows={3}
            value={fields.prompt}
            onInput={(e) => set({ prompt: e.currentTarget.value })}
          />
        )}
      </Field>
      <Field label={t('form.negative')} error={errors.negative_prompt}>
        {(attributes) => (
          <textarea
            {...attributes}
            rows={2}
            value={fields.negative_prompt}
            onInput={(e) => set({ negative_prompt: e.currentTarget.value })}
          />
        )}
      </Field>
      <Foot error={errors['']} isBusy={isBusy} onEnd={onEnd} />
    </form>
  );
}

export function WildcardForm({
  wildcard,
  others,
  onDirty,
  onEnd,
}: FormProps & { wildcard: Wildcard | null }) {
  const [name, setName] = useState(wildcard?.name ?? '');
  const [text, setText] = useState(wildcard?.lines.join('\n') ?? '');
  const { errors, isBusy, run, clear } = useSaving(['name', 'lines'], onEnd);
  const note = () => {
    clear();
    onDirty();
  };
  const save = () => {
    const wanted = name.trim().toLowerCase();
    const lines = text.split('\n').map((line) => line.trim()).filter(Boolean);
    const wrong: FieldErrors = {};
    if (!wanted) wrong.name = t('check.name');
    else if (!WILDCARD_NAME.test(wanted)) wrong.name = t('words.wildcardName');
    else if (others.includes(wanted)) wrong.name = t('words.taken');
    if (!lines.length) wrong.lines = t('words.noLines');
    void run(wrong, async () => {
      await api.keepWildcard({ name: wanted, lines });
      if (wildcard && wildcard.name !== wanted) await api.deleteWildcard(wildcard.name);
    });
  };
  return (
    <form
      class="stack"
      noValidate
      onSubmit={(e) => {
        e.preventDefault();
        save();
      }}
    >
      <Field label={t('field.name')} error={errors.name} hint={t('words.wildcardName')}>
        {(attributes) => (
          <input
            {...attributes}
            type="text"
            autocapitalize="off"
            maxLength={WILDCARD_NAME_MAX}
            value={name}
            onInput={(e) => {
              setName(e.currentTarget.value);
              note();
            }}
          />
        )}
      </Field>
      <Field label={t('field.lines')} error={errors.lines} hint={t('words.linesHint')}>
        {(attributes) => (
          <textarea
            {...attributes}
            rows={6}
            value={text}
            onInput={(e) => {
              setText(e.currentTarget.value);
              note();
            }}
          />
        )}
      </Field>
      <Foot error={errors['']} isBusy={isBusy} onEnd={onEnd} />
    </form>
  );
}
