// Language and colours, and the list of shortcuts.

import { language, LANGUAGES, setLanguage, t, type Language } from '../i18n';
import { setTheme, theme, THEMES, type Theme } from '../theme';
import { Dialog } from './ui';

export function Preferences({ compact }: { compact?: boolean }) {
  return (
    <div class={`preferences ${compact ? 'compact' : ''}`}>
      <label>
        <span class={compact ? 'unseen' : ''}>{t('prefs.language')}</span>
        <select
          value={language.value}
          onChange={(e) => setLanguage(e.currentTarget.value as Language)}
        >
          {Object.entries(LANGUAGES).map(([tag, name]) => (
            <option key={tag} value={tag} lang={tag}>
              {compact ? tag.toUpperCase() : name}
            </option>
          ))}
        </select>
      </label>
      <label>
        <span class={compact ? 'unseen' : ''}>{t('prefs.theme')}</span>
        <select value={theme.value} onChange={(e) => setTheme(e.currentTarget.value as Theme)}>
          {THEMES.map((one) => (
            <option key={one} value={one}>
              {t(`prefs.${one}`)}
            </option>
          ))}
        </select>
      </label>
    </div>
  );
}

export function Shortcuts({ onClose }: { onClose: () => void }) {
  const keys: [string, string][] = [
    ['Ctrl ↵', t('action.draw')],
    ['/', t('keys.prompt')],
    ['g c', t('nav.create')],
    ['g g', t('nav.gallery')],
    ['g l', t('nav.loras')],
    ['g a', t('nav.avatars')],
    ['g x', t('nav.grid')],
    ['g b', t('nav.batches')],
    ['g s', t('nav.costs')],
    ['← →', t('keys.neighbours')],
    ['Esc', t('keys.back')],
    ['?', t('keys.title')],
  ];
  return (
    <Dialog title={t('keys.title')} onClose={onClose}>
      <dl class="keys">
        {keys.map(([key, meaning]) => (
          <div key={key}>
            <dt>
              <kbd>{key}</kbd>
            </dt>
            <dd>{meaning}</dd>
          </div>
        ))}
      </dl>
    </Dialog>
  );
}
