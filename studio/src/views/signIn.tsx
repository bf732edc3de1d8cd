// The gate where the server asks for a key.

import { useState } from 'preact/hooks';
import { api, asProblem } from '../server/api';
import { t } from '../i18n';
import { Icon } from '../parts/icons';
import { Button, Field } from '../parts/ui';
import { explain } from '../server/explain';
import { wasRefused } from '../state/store';

export function SignInView({ onSignedIn }: { onSignedIn: () => void }) {
  const [key, setKey] = useState('');
  const [error, setError] = useState<string | null>(null);
  const [isBusy, setBusy] = useState(false);
  const submit = async () => {
    if (!key.trim()) {
      setError(t('signIn.blank'));
      return;
    }
    setBusy(true);
    try {
      await api.signIn(key.trim());
      onSignedIn();
    } catch (problem) {
      const { status } = asProblem(problem);
      setError(status === 401 ? t('signIn.wrong') : explain(asProblem(problem)));
    } finally {
      setBusy(false);
    }
  };
  return (
    <main class="sign-in">
      <form
        noValidate
        onSubmit={(e) => {
          e.preventDefault();
          void submit();
        }}
      >
        <Icon name="key" size={28} />
        <h1>{t('signIn.title')}</h1>
        {wasRefused.value && (
          <p class="field-error" role="alert">
            {t('signIn.refused')}
          </p>
        )}
        <p class="muted">{t('signIn.text')}</p>
        <Field label={t('signIn.key')} error={error}>
          {(attributes) => (
            <input
              {...attributes}
              autofocus
              type="password"
              autocomplete="current-password"
              spellcheck={false}
              value={key}
              onInput={(e) => {
                setKey(e.currentTarget.value);
                setError(null);
              }}
            />
          )}
        </Field>
        <Button type="submit" kind="accent" disabled={isBusy}>
          {t('signIn.action')}
        </Button>
      </form>
    </main>
  );
}
