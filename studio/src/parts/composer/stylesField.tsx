// The owner's styles: any number of them is chosen for a picture.

import { useState } from 'preact/hooks';
import { change, draft } from '../../drafting/draft';
import { t } from '../../i18n';
import { lazy } from '../../lazy';
import { model } from '../../state/store';
import { styles } from '../../state/words';
import { Button } from '../ui';

export const WordsManager = lazy(() => import('../words/manager').then((found) => found.WordsManager));

const MOST = 20;

/** Those that there are, and those that the form still names. */
function offered(): string[] {
  const known = (styles.value ?? []).map((one) => one.name);
  return [...known, ...draft.value.styles.filter((name) => !known.includes(name))];
}

export const hasStyles = (): boolean => offered().length > 0;

export function StylesField({ error }: { error?: string }) {
  const [manages, setManages] = useState(false);
  const chosen = draft.value.styles;
  // Not in the form that the server sends, which knows nobody's.
  if (model.value === null || !(hasStyles() || manages)) return null;
  const toggle = (name: string) =>
    change({
      styles: chosen.includes(name) ? chosen.filter((one) => one !== name) : [...chosen, name],
    });
  return (
    <fieldset class="styles">
      <legend>{t('field.styles')}</legend>
      <div class="chips">
        {offered().map((name) => (
          <button
            type="button"
            class="chip"
            key={name}
            aria-pressed={chosen.includes(name)}
            disabled={chosen.length >= MOST && !chosen.includes(name)}
            onClick={() => toggle(name)}
          >
            {name}
          </button>
        ))}
        <Button icon="more" kind="quiet" iconOnly onClick={() => setManages(true)}>
          {t('words.title')}
        </Button>
      </div>
      {error && <p class="field-error">{error}</p>}
      {manages && <WordsManager onClose={() => setManages(false)} />}
    </fieldset>
  );
}
