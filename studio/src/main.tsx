import './styles/index.css';
import { render } from 'preact';
import { App } from './app';
import { startLanguage } from './i18n';
import { startLive } from './server/live';
import { startTheme } from './device/theme';

startTheme();
void startLanguage().then(() => {
  startLive();
  const root = document.getElementById('app');
  if (root) render(<App />, root);
});
